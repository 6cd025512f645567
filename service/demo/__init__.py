"""The main job: survey source code with real agent processes, and show what policy refuses and cancels."""
