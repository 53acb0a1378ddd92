"""The four experiments on explanations of similarity, and what they share."""
