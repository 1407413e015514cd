"""From StepInput to StepOutput: weights, compiled steps, the runner."""
