"""Labelled pictures: data sets, their splits, image folders, downloads, augmentation."""
