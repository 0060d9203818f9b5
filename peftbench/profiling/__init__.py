"""Counting and measuring what a job costs."""
