"""How children come to be: orders, the questions they raise, and the transaction that grants or refuses them.

Singles and groups take the same way, and take it in batches: a batch of one is a batch.
"""
