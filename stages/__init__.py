"""One script per stage of dvc.yaml. Each reads parameters and files, calls the library and writes files."""
