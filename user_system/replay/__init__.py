"""The replay buffer: one writer, readers by mmap, draws that never mix up what followed what.

``store.Store`` writes, ``sampler.ReplayData`` draws, ``queue.Queue`` is the edge's spool on the
same foundation, ``verify`` checks and sets aside what is damaged. ``env`` is the only door to LMDB.
"""
