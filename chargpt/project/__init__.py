"""What surrounds a model: params.yaml, git, dvc.lock, remotes and versions."""
