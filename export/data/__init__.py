"""Labelled images: data sets, their splits, image folders, downloads, augmentation."""
