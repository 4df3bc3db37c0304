"""Small tools that know nothing of the blog: numbers, paging, tokens."""
