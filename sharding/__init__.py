"""Where arrays live: the mesh, logical axes and placement."""
