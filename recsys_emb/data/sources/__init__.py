"""One file per raw format; each registers itself and is found by its file being here."""
