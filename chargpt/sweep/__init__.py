"""Many experiments, on one machine or a cluster: Optuna chooses, submitit runs, DVC records."""

from chargpt.errors import ChargptError

try:
    import optuna
    import submitit
except ImportError as error:
    raise ChargptError(f"{error.name} is not installed; run: pip install -c constraints.txt -e '.[sweep]'") from None

__all__ = ["optuna", "submitit"]
optuna.logging.set_verbosity(optuna.logging.ERROR)
