"""Benchmark tasks as data: one YAML file each, and the code that reads them."""

from benchmarks.tasks.definition import Protocol, Published, Task, load_task, patients_sha256, task_names

__all__ = ["Protocol", "Published", "Task", "load_task", "patients_sha256", "task_names"]
