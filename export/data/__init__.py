"""Labelled pictures: published data sets, folders of pictures, augmentation."""
