"""Benchmark scores as pure functions over detections, answers and pictures."""
