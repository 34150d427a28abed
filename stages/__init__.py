"""One script per stage of dvc.yaml: parameters and files in, one library call, files out."""
