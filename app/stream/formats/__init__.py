"""The forms in which a stream leaves, besides our own (stream/records.py): each renders one item, and knows no destination."""
