"""A model learns online from purchases while a second process serves its fresh embeddings."""
