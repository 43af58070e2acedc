"""ClusterFit: from the features of a network to targets for another one."""
