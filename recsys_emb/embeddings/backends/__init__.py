"""One file per embedding method; each registers itself and is found by its file being here."""
