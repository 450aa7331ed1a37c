"""``python -m recsys_emb`` is the ``recsys-emb`` command."""

from recsys_emb.cli import main

if __name__ == "__main__":
    main()
