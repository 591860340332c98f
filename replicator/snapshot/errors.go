package snapshot

import "errors"

// Errors that the caller can act upon.
var (
	// ErrRewritten says that a leaf's storage is another than the catalogue describes, so that a snapshot may miss rows
	// silently. The table has to be copied under a new snapshot.
	ErrRewritten = errors.New("the relation was rewritten since it was described")
	// ErrDamaged says that a COPY stream is not what it should be: cut, or not in the format asked for.
	ErrDamaged = errors.New("damaged COPY stream")
	// ErrNullRealm says that a row of a sharded table has no realm.
	ErrNullRealm = errors.New("a row has no realm")
	// ErrCount says that the sides do not agree on how many rows were copied.
	ErrCount = errors.New("row counts differ")
)
