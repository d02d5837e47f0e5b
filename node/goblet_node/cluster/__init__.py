"""A node among others: how it comes, and how it goes.

life says what the node is to others, as one enum and one table; marker remembers over a
restart that it was ready. join copies what the node will own, drain hands over what it
owned, and course takes the node through all of it, in that order.
"""
