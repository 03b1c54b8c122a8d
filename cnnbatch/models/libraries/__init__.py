"""Networks of torchvision, timm and Keras as this package has them."""
