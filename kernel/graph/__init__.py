"""Graphs: how they are written (spec), what they mean (ir), whether they may run (compiler), and what runs them."""
