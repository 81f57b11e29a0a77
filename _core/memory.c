#include "memory.h"

#include <errno.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <openssl/crypto.h>
#include <openssl/rand.h>

#ifndef MAP_ANONYMOUS
#define MAP_ANONYMOUS MAP_ANON
#endif

static size_t page_size(void)
{
    return (size_t)sysconf(_SC_PAGESIZE);
}

/* Guard page, `size` bytes rounded up to pages, guard page; locked where that is allowed, and not dumped. */
static unsigned char *map_guarded(size_t size, size_t *mapping_size, int *locked, int wiped_by_fork)
{
    size_t page = page_size();
    size_t inner = (size + page - 1) / page * page;
    size_t total = inner + 2 * page;
    unsigned char *mapping = mmap(NULL, total, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping == MAP_FAILED)
        return NULL;
    if (mprotect(mapping + page, inner, PROT_READ | PROT_WRITE) != 0) {
        int saved = errno;
        munmap(mapping, total);
        errno = saved;
        return NULL;
    }
    *locked = mlock(mapping + page, inner) == 0;
    /* A kernel that lacks one of these goes on: epoch and process id still refuse a fork. */
#ifdef MADV_DONTDUMP
    (void)madvise(mapping + page, inner, MADV_DONTDUMP);
#endif
#ifdef MADV_WIPEONFORK
    if (wiped_by_fork)
        (void)madvise(mapping + page, inner, MADV_WIPEONFORK);
#endif
    *mapping_size = total;
    return mapping;
}

int secret_pages_map(secret_pages *pages, size_t size)
{
    memset(pages, 0, sizeof *pages);
    if (size == 0 || size > ((size_t)1 << 30)) {
        errno = EINVAL;
        return -1;
    }
    size_t page = page_size();
    /* Against the upper guard, so that a read past the end faults; 16 for aligned vector loads. */
    size_t padded = (size + 15) / 16 * 16;
    unsigned char *mapping = map_guarded(padded, &pages->mapping_size, &pages->locked, 1);
    if (mapping == NULL)
        return -1;
    pages->mapping = mapping;
    pages->data = mapping + pages->mapping_size - page - padded;
    pages->size = size;
    return 0;
}

void secret_pages_wipe(secret_pages *pages)
{
    if (pages->mapping != NULL)
        OPENSSL_cleanse(pages->data, pages->size);
}

void secret_pages_unmap(secret_pages *pages)
{
    if (pages->mapping == NULL)
        return;
    secret_pages_wipe(pages);
    munmap(pages->mapping, pages->mapping_size);
    memset(pages, 0, sizeof *pages);
}

int secret_pages_map_shared(secret_pages *pages, size_t size)
{
    memset(pages, 0, sizeof *pages);
    pages->mapping = map_guarded(size, &pages->mapping_size, &pages->locked, 0);
    if (pages->mapping == NULL)
        return -1;
    pages->data = pages->mapping + page_size();
    pages->size = size;
    return 0;
}

void secret_pages_unmap_shared(unsigned char *data, size_t size)
{
    size_t page = page_size();
    munmap(data - page, (size + page - 1) / page * page + 2 * page);
}

void secret_copy(void *to, const void *from, size_t size)
{
    /* A byte at a time: memcpy uses vector registers, and nothing clears those afterwards. */
    volatile unsigned char *target = to;
    const volatile unsigned char *source = from;
    for (size_t i = 0; i < size; i++)
        target[i] = source[i];
}

/* Wiped by a fork. Holds 42 random bits above the low 22 bits of the process id (Linux has no larger ids), which
   tell a fork where the kernel cannot wipe. */
static _Atomic(_Atomic uint64_t *) sentinel_page;
/* Asking for the process id is a call of the system: half the time of sealing one row. */
static _Atomic int ask_process_id = 1;

static _Atomic uint64_t *sentinel(void)
{
    _Atomic uint64_t *here = atomic_load(&sentinel_page);
    if (here != NULL)
        return here;
    size_t mapping_size;
    int locked;
    unsigned char *mapping = map_guarded(sizeof *here, &mapping_size, &locked, 1);
    if (mapping == NULL)
        return NULL;
    _Atomic uint64_t *mine = (_Atomic uint64_t *)(void *)(mapping + page_size());
#ifdef MADV_WIPEONFORK
    int wiped = madvise(mapping + page_size(), page_size(), MADV_WIPEONFORK) == 0;
#else
    int wiped = 0;
#endif
    if (atomic_compare_exchange_strong(&sentinel_page, &here, mine)) {
        if (wiped)
            atomic_store(&ask_process_id, 0);
        return mine;
    }
    munmap(mapping, mapping_size);
    return here;
}

uint64_t process_epoch(void)
{
    _Atomic uint64_t *here = sentinel();
    if (here == NULL)
        return 0;
    const uint64_t pid_mask = ((uint64_t)1 << 22) - 1;
    uint64_t epoch = atomic_load(here);
    if (epoch != 0 && !atomic_load(&ask_process_id))
        return epoch;
    uint64_t pid = (uint64_t)getpid() & pid_mask;
    if (epoch != 0 && (epoch & pid_mask) == pid)
        return epoch;
    uint64_t fresh = 0;
    if (RAND_bytes((unsigned char *)&fresh, sizeof fresh) != 1)
        return 0;
    fresh = (fresh | ((uint64_t)1 << 63)) & ~pid_mask;
    fresh |= pid;
    /* Of several threads here at once, one sets the number and the others take it. */
    return atomic_compare_exchange_strong(here, &epoch, fresh) ? fresh : epoch;
}
