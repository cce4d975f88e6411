"""Batch kernels: AES-256-GCM, AES-256-SIV and FF1 over whole Arrow buffers, byte for byte the published standards.

Pure functions of buffers: no Spark, no keysets, no policy. A kernel holds one key and what can be computed from it once; its
``encrypt`` and ``decrypt`` take one Arrow array and give one back. All AES blocks of a batch go through ``cryptography`` in
a few calls and the rest is NumPy on the arrays' offsets and data, so no Python object is made per value. Values that are too
long or too few for that to pay go through ``cryptography`` one by one, with the same bytes as result.
"""
