"""Keysets, the identities they are sealed to, and the keyring that stores them."""
