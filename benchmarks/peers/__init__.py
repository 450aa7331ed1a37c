"""Other libraries, each in a process of the peers' own environment (``make peers``); none of it imports recsys_emb."""
