"""A row becomes a message, and a message or a row becomes arguments again.

Enters: a row, or the headers and the body of a message. Leaves: what dispatch/ publishes and run/ calls with.
Never here: a query, or a word to the broker. Read row_to_message.py first.
"""
