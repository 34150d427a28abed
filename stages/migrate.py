"""Convert legacy text weights to a model file that computes the same function."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from chargpt.files import refuse_link, write_json, write_text
from chargpt.legacy.directory import DoesNotFitCorpus, read_legacy
from chargpt.paths import MIGRATED, MIGRATION, TOKENS, VOCAB
from chargpt.text.tokens import read_tokens
from chargpt.text.vocab import Vocab

if TYPE_CHECKING:
    from chargpt.params import Params


def main(params: Params) -> None:
    """Migrate the weights in legacy_dir, and write down what was found.

    If they do not fit the corpus and training starts from scratch, write an empty model file and an empty record.
    """
    vocab, dialect = Vocab.load(VOCAB), params.dialect
    train_ids, val_ids = read_tokens(TOKENS, vocab)
    weights, config = (Path(params.legacy_dir) / name for name in ("weights", "config.json"))
    refuse_link(weights)
    config_path = config if config.exists() or config.is_symlink() else None
    try:
        legacy = read_legacy(weights, config_path)
        legacy.require_vocab(vocab)
        from chargpt.legacy.migration import migrate  # loads torch, which takes seconds

        migration = migrate(legacy, MIGRATED, vocab, val_ids, train_ids=train_ids, dialect=dialect)
    except DoesNotFitCorpus as error:
        if params.init == "migrated":
            raise
        print(f"migrate: skipped; init is {params.init} and needs no legacy model ({error})", file=sys.stderr)
        write_text(MIGRATED, "")
        write_json(MIGRATION, {})
        return
    write_json(MIGRATION, migration.record())
    print(migration.report(), file=sys.stderr)
