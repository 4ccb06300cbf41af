package edge

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"
	"time"
)

const (
	ticketKey = "ticket-keys" // of the value, and the name of its lock

	ticketReread = time.Hour // far less than ticketAhead

	// Pauses after an error, from the first to the last.
	minTicketRetry = time.Second
	maxTicketRetry = 10 * time.Minute

	ticketStorageTimeout = 30 * time.Second // for one look, with writing if need be
	ticketUnlockTimeout  = 5 * time.Second
)

// KeyStorage is as much of a storage as TicketKeys needs: a certmagic.Storage that can move what is of
// no use out of the way, and tell where to. Load returns fs.ErrNotExist if there is no value.
type KeyStorage interface {
	Load(ctx context.Context, key string) ([]byte, error)
	Store(ctx context.Context, key string, value []byte) error
	Lock(ctx context.Context, name string) error
	Unlock(ctx context.Context, name string) error
	SetAside(ctx context.Context, key string) (aside string, err error)
}

// Load reads the storage once, so that clients of an earlier process can resume from the first connection on.
// Run does the same, but nobody waits for it.
func (k *TicketKeys) Load(ctx context.Context) error {
	if k.Storage == nil {
		return nil
	}
	return k.look(ctx)
}

// follow reads the storage until ctx ends, and renews what it holds.
func (k *TicketKeys) follow(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	retry := minTicketRetry
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		err := k.look(ctx)
		if ctx.Err() != nil {
			return // whatever the error is, that is why
		}
		k.report(err)
		if err != nil {
			timer.Reset(retry)
			retry = min(2*retry, maxTicketRetry)
		} else {
			timer.Reset(ticketReread)
			retry = minTicketRetry
		}
	}
}

// report says when the storage begins to fail, and when it works again.
func (k *TicketKeys) report(err error) {
	k.mu.Lock()
	failed := k.failing
	k.failing = err != nil
	k.mu.Unlock()
	switch {
	case err != nil && !failed:
		k.log().Warn("storage of session ticket keys fails", "error", err,
			"hint", "tunnels work; until it is back, clients may not resume after a restart or at another edge")
	case err == nil && failed:
		k.log().Info("storage of session ticket keys works again")
	}
}

// look reads the storage once, and writes if what it holds has to be renewed.
func (k *TicketKeys) look(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, ticketStorageTimeout)
	defer cancel()
	// A system call that hangs does not notice the end of ctx; whoever reads the log should.
	late := time.AfterFunc(ticketStorageTimeout+ticketUnlockTimeout, func() {
		k.report(fmt.Errorf("no answer within %v", ticketStorageTimeout))
	})
	defer late.Stop()

	stored, err := k.load(ctx)
	switch {
	case err == nil:
		k.adopt(stored)
		if _, renew := stored.planned(time.Now()); !renew {
			return nil
		}
	case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, errTicketsDamaged):
		return err
	}
	renewErr := k.renew(ctx)
	if renewErr != nil && errors.Is(err, errTicketsDamaged) {
		return fmt.Errorf("%w; %w", err, renewErr)
	}
	return renewErr
}

func (k *TicketKeys) load(ctx context.Context) (ticketSecrets, error) {
	value, err := k.Storage.Load(ctx, ticketKey)
	if errors.Is(err, fs.ErrPermission) {
		return nil, fmt.Errorf("%w: %w", errTicketsDamaged, err)
	}
	if err != nil {
		return nil, err
	}
	stored, err := parseTicketSecrets(value)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", ticketKey, err)
	}
	return stored, nil
}

// renew writes what the storage should hold, unless another edge was faster.
func (k *TicketKeys) renew(ctx context.Context) (err error) {
	if err := k.Storage.Lock(ctx, ticketKey); err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), ticketUnlockTimeout)
		defer cancel()
		// If the lock was lost, another may have written meanwhile: the next look finds out.
		err = cmp.Or(err, k.Storage.Unlock(ctx, ticketKey))
	}()

	stored, err := k.load(ctx)
	damaged := errors.Is(err, errTicketsDamaged)
	switch {
	case damaged:
		if err := k.setAside(ctx, err); err != nil {
			return err
		}
		// The other edges still have what was in it, as we have.
		k.mu.Lock()
		stored = k.stored
		k.mu.Unlock()
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	}
	next, changed := stored.planned(time.Now())
	if changed || damaged {
		err := k.Storage.Store(ctx, ticketKey, next.marshal())
		if errors.Is(err, fs.ErrExist) || errors.Is(err, syscall.EISDIR) { // there is a folder in its place
			if err = k.setAside(ctx, err); err == nil {
				err = k.Storage.Store(ctx, ticketKey, next.marshal())
			}
		}
		if err != nil {
			return err
		}
	}
	k.adopt(next)
	return nil
}

// setAside keeps what is damaged for whoever wants to know what happened to it.
func (k *TicketKeys) setAside(ctx context.Context, reason error) error {
	aside, err := k.Storage.SetAside(ctx, ticketKey)
	if err != nil {
		return fmt.Errorf("setting it aside: %w", err)
	}
	k.log().Error("session ticket keys in the storage are damaged, replaced", "error", reason, "kept_as", aside)
	return nil
}
