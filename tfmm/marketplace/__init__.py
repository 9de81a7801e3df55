"""A synthetic marketplace that stands in where there is no data: drawn products, shoppers with taste, clicks."""
