"""What `python -m fastadam demo` and `python -m fastadam compare` run. Nothing outside this folder imports it."""
