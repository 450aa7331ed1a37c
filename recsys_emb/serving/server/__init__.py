"""An artifact behind HTTP: ``recsys-emb serve``. Needs the extra ``serve``."""
