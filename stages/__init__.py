"""The pipeline's stages: each a thin script, files in, one library call, files out. See dvc.yaml."""
