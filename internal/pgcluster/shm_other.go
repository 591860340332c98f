//go:build !linux

package pgcluster

func removeSegment(string) {}
