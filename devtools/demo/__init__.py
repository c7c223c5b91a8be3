"""``make demo``: the main job on the screen, and what it costs."""
