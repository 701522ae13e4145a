"""Benchmarks: python -m bench; see CONTRIBUTING.md. Nothing here is installed with the package."""
