"""Arrays, images, fragments and weights as bytes. No sockets; the only files are checkpoints.

Use the modules as namespaces: ``arrays.pack``, ``images.encode``, ``fragments.decode``,
``weights.save``. Bytes that are not what was written raise ``DamageError`` before anything is made
of them; values that cannot be written raise ``SpecError``.
"""
