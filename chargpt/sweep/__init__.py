"""Many experiments, on one machine or a cluster: Optuna chooses, submitit runs, DVC records."""

from chargpt.errors import ChargptError

try:
    import optuna
    import submitit  # noqa: F401
except ImportError as error:
    raise ChargptError(f"{error.name} is not installed; run: pip install -c constraints.txt -e '.[sweep]'") from None

optuna.logging.set_verbosity(optuna.logging.ERROR)
