package workload

// Kind is what a write does.
type Kind string

// The kinds of writes. The first two also exist over HTTP; the others are done by writers with a connection of their own.
const (
	KindTransfer Kind = "transfer" // money from one account of a realm to another
	KindDocument Kind = "document" // a document written, renamed or deleted
	KindMember   Kind = "member"   // jsonb, an array and a timestamp of a member
	KindMetric   Kind = "metric"   // a row of a partitioned table, after one that is rolled back to a savepoint
	KindToken    Kind = "token"    // rows of the table whose key has no realm in it
	KindRate     Kind = "rate"     // a row of a reference table; at the source only
)

// Op is one write: one transaction, done once however often it is sent.
type Op struct {
	ID       string        `json:"id"` // of the event, chosen by the client
	Realm    string        `json:"realm"`
	Kind     Kind          `json:"kind"`
	Transfer *Transfer     `json:"transfer,omitempty"`
	Document *DocumentEdit `json:"document,omitempty"`
	Number   int           `json:"number,omitempty"` // which member or currency, and what is written
}

// Transfer moves money; its id is the Op's.
type Transfer struct {
	From  int   `json:"from"`
	To    int   `json:"to"`
	Cents int64 `json:"cents"`
}

// DocumentAction is what is done with a document.
type DocumentAction string

// Actions. Rename leaves the body alone, so that a body that is stored out of line is not sent again.
const (
	PutDocument    DocumentAction = "put"
	RenameDocument DocumentAction = "rename"
	DeleteDocument DocumentAction = "delete"
)

// DocumentEdit changes one document.
type DocumentEdit struct {
	Document   string         `json:"document"` // its id
	Action     DocumentAction `json:"action"`
	Title      string         `json:"title,omitempty"`
	Body       string         `json:"body,omitempty"`
	Attachment []byte         `json:"attachment,omitempty"`
}
