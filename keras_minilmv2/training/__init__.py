"""Schedules, callbacks and pictures of a training run."""
