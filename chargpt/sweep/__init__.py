"""Many experiments, on as many machines as there are: Optuna chooses, submitit runs, DVC remembers."""
