"""Part *search*: classifiers and indexes over very many classes, products and images."""
