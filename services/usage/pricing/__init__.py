"""What usage costs: a book of prices, and the rating of one event by it. Pure."""
