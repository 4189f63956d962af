"""From a question about two methods to an ordinary config: sizes, rates to search, seeds, and what is compared."""
