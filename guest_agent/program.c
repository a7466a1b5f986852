/*
 * Counts page-cache accesses, and page-cache insertions by what caused them. Compiled by bcc; see collector.py.
 *
 * Written for Linux 6.1 and later. A hook that this kernel does not have is left out: probes.py defines HAVE_<hook> for
 * each one that is there.
 *
 * Each counter but those of what was lost is written by one program only, and the kernel lets no program run twice at a time on a CPU
 * (it counts what it skips: recursion_misses), so plain additions to per-CPU memory lose nothing unnoticed.
 *
 * The cached read is the hot path: it passes through one fexit program and no map but the counters. Everything that
 * tells causes apart sits on paths that wait for a disk anyway, or on writes.
 */

/*
 * A member of a kernel structure. The offsets are the running kernel's own (its BTF; see probes.py): the headers that
 * define the structures would take ten times longer to compile than all of this.
 */
#define FIELD(type, pointer, structure, member) (*(type *)((char *)(pointer) + OFFSET_##structure##_##member))
/* The same through a pointer that the verifier knows nothing of. */
#define READ_FIELD(destination, pointer, structure, member)                                                            \
	bpf_probe_read_kernel(&(destination), sizeof(destination), (char *)(pointer) + OFFSET_##structure##_##member)

/* The order is known to reader.py (SLOTS). */
struct counts {
	u64 accesses_read;
	u64 accesses_splice;
	u64 inserts_read;
	u64 inserts_fault;
	u64 inserts_write;
	u64 inserts_other;
	u64 evictions;
	u64 scopes_lost;
	u64 faults;
	u64 samples_lost;
	u64 faults_major;
};
BPF_PERCPU_ARRAY(counts, struct counts, 1);

static __always_inline struct counts *this_cpu_counts(void)
{
	int zero = 0;

	return counts.lookup(&zero);
}

/* ------------------------------------------------------------------------------------------------- samples */

/*
 * One page of every aligned 64 is watched, and each access to it goes to a ring: see docs/samples-file.md. Nearly all
 * reads touch no watched page and must be cheap: which page it is takes the file's inode number alone, and all that
 * tells files apart for certain is looked at only where a watched page is touched.
 */
#ifdef SAMPLES
#define SAMPLE_READ 0
#define SAMPLE_FAULT 1
#define BLOCK_SHIFT 6
#define LEVELS 10
#define LOW_BITS ((1ULL << LEVELS) - 1)
/* 64 MiB. What a call touches beyond is counted as lost. */
#define BLOCKS_PER_CALL 256

/* 512 KiB: 32,768 events of 16 bytes, more than the rate control lets pass in many seconds. */
BPF_RINGBUF_OUTPUT(samples, 128);
/* Which of a key's low bits must be 0 at the present rate: 2 ** (shift - 6) - 1. Written by reader.py. */
BPF_ARRAY(sample_mask, u64, 1);
/*
 * Events of pages that are read so often that they would drown all others: counted here, exactly, instead of going to
 * the ring. Which they are is chosen by sampler.py.
 */
BPF_HASH(dominant_pages, u64, u64, 64);

/* The multipliers and shifts of splitmix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators"). */
static __always_inline u64 mixed(u64 value)
{
	value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9ULL;
	value = (value ^ (value >> 27)) * 0x94d049bb133111ebULL;
	return value ^ (value >> 31);
}

static __always_inline u64 watched_page(u64 inode_number, u64 block)
{
	u64 hash = (inode_number * 0x9e3779b97f4a7c15ULL + SAMPLE_SALT + block) * 0xbf58476d1ce4e5b9ULL;

	hash = (hash ^ (hash >> 32)) * 0x94d049bb133111ebULL;
	return block << BLOCK_SHIFT | hash >> (64 - BLOCK_SHIFT);
}

/*
 * At lower rates one block of each aligned pair is kept, of each pair of such pairs one, and so on. Which one is by a
 * hash of the pair: what lies at a fixed distance in a file is then neither seen whole nor not at all. Bit n tells
 * whether a block is kept in its pair of level n (0).
 */
static __always_inline u64 places_in_pairs(u64 file, u64 block)
{
	u64 low = 0, level;

#pragma unroll
	for (level = 0; level < LEVELS; level++)
		low |= ((block >> level ^ mixed(file + (level << 58) + (block >> (level + 1)))) & 1) << level;
	return low;
}

static __always_inline void sample_block(struct counts *count, void *inode, u64 block, u64 kind)
{
	void *super_block = FIELD(void *, inode, inode, i_sb);
	u64 generation = FIELD(u32, inode, inode, i_generation);
	u64 device = FIELD(u32, super_block, super_block, s_dev);
	u64 file = mixed(mixed(FIELD(u64, inode, inode, i_ino) + SAMPLE_SALT) + (generation << 32 | device));
	u64 low = places_in_pairs(file, block);
	int zero = 0;
	u64 *mask = sample_mask.lookup(&zero);
	u64 event, *apart;

	if (!mask || low & *mask)
		return;
	event = ((mixed(file + block) & ~LOW_BITS) | low) << 4 | kind;
	apart = dominant_pages.lookup(&event);
	if (apart) {
		__sync_fetch_and_add(apart, 1);
		return;
	}
	if (samples.ringbuf_output(&event, sizeof(event), BPF_RB_NO_WAKEUP))
		__sync_fetch_and_add(&count->samples_lost, 1);
}

static __always_inline void sample(struct counts *count, void *file, u64 first, u64 last, u64 kind)
{
	void *inode = FIELD(void *, FIELD(void *, file, file, f_mapping), address_space, host);
	u64 inode_number = FIELD(u64, inode, inode, i_ino);
	u64 block = first >> BLOCK_SHIFT, end = (last >> BLOCK_SHIFT) + 1, page, *mask;
	int visited, zero = 0;

#pragma clang loop unroll(disable)
	for (visited = 0; visited < BLOCKS_PER_CALL; visited++) {
		page = watched_page(inode_number, block);
		if (first <= page && page <= last)
			sample_block(count, inode, block, kind);
		if (++block >= end)
			return;
	}
	mask = sample_mask.lookup(&zero);
	if (mask)
		__sync_fetch_and_add(&count->samples_lost, (end - block) / (*mask + 1));
}
#endif

/* -------------------------------------------------------------------------------------------------- ghosts */

/*
 * How far evicted pages had gone when they came back. Of every 64 pages of a file one is watched; each that leaves the
 * cache moves a clock on; how much it has moved when such a page returns is its refault distance, in 64 pages. With so
 * much more memory it would not have gone. A page comes back when it is read ahead or read, or when a fault asks for it:
 * the neighbours that the fault brings in came for its sake. See ghosts.py.
 */
#ifdef SAMPLES_GHOSTS
#define GHOST_BINS 40
#define GHOSTS_MAX 8192
/* 2 MiB are 8 blocks, and may begin within one. Of a larger folio, the rest is not seen. */
#define BLOCKS_PER_FOLIO 9

/* Known to ghosts.py. */
struct ghosts {
	u64 clock;
	u64 read[GHOST_BINS];
	u64 fault[GHOST_BINS];
};
BPF_ARRAY(ghosts, struct ghosts, 1);
/* When each left, by the clock. */
BPF_TABLE("lru_hash", u64, u64, ghosts_left, GHOSTS_MAX);

static __always_inline u32 ghost_bin(u64 distance)
{
	u32 bin = 0, at;

	/* Less than 16; then four for each doubling. */
#pragma unroll
	for (at = 0; at < GHOST_BINS - 1; at++)
		bin += distance >= (4ULL + at % 4) << (2 + at / 4);
	return bin;
}

static __always_inline void ghost_leaves(u64 page)
{
	int zero = 0;
	struct ghosts *all = ghosts.lookup(&zero);
	u64 now;

	if (!all)
		return;
	__sync_fetch_and_add(&all->clock, 1);
	now = all->clock;
	ghosts_left.update(&page, &now);
}

static __always_inline void ghost_returns(u64 page, bool by_fault)
{
	int zero = 0;
	struct ghosts *all = ghosts.lookup(&zero);
	u64 *left = ghosts_left.lookup(&page);
	u32 bin;

	if (!all || !left)
		return;
	bin = ghost_bin(all->clock - *left);
	if (bin < GHOST_BINS)
		__sync_fetch_and_add(by_fault ? &all->fault[bin] : &all->read[bin], 1);
	ghosts_left.delete(&page);
}

#define GHOST_LEAVES 0
#define GHOST_RETURNS_BY_READ 1
#define GHOST_RETURNS_BY_FAULT 2

/*
 * Told apart by where the kernel keeps the file's cache, which takes no look at its inode. An address that is used again
 * for another file makes no returns: the host counts no more of them than the kernel counts refaults.
 */
static __always_inline void watch_ghosts(u64 mapping, u64 index, u64 pages, int what)
{
	u64 block = index >> BLOCK_SHIFT, file = mapping * 0x9e3779b97f4a7c15ULL, page, ghost;
	int visited;

#pragma clang loop unroll(disable)
	for (visited = 0; visited < BLOCKS_PER_FOLIO && block << BLOCK_SHIFT < index + pages; visited++, block++) {
		page = watched_page(mapping >> 3, block);
		if (page - index >= pages)
			continue;
		ghost = mixed(file + block);
		if (what == GHOST_LEAVES)
			ghost_leaves(ghost);
		else
			ghost_returns(ghost, what == GHOST_RETURNS_BY_FAULT);
	}
}
#endif

/* ------------------------------------------------------------------------------------------------ accesses */

/* Adds the pages of [end - bytes, end) of a file. */
static __always_inline void count_accesses(struct counts *count, u64 *accesses, void *file, s64 end, s64 bytes)
{
	u64 first = (u64)(end - bytes) >> PAGE_SHIFT, last = (u64)(end - 1) >> PAGE_SHIFT;

	*accesses += last - first + 1;
#ifdef SAMPLES
	sample(count, file, first, last, SAMPLE_READ);
#endif
}

#ifdef HAVE_filemap_read
/*
 * The function behind every buffered read(2) of a disk file system or block device. It returns already_read (what
 * O_DIRECT got before, 0 otherwise) plus what it copied itself, ending at ki_pos; or an error. tmpfs has a function
 * of its own (shmem_file_read_iter), so what it reads is not counted.
 */
KRETFUNC_PROBE(filemap_read, void *iocb, void *iter, s64 already_read, s64 ret)
{
	s64 bytes = ret - already_read;
	struct counts *count;

	if (ret <= 0 || bytes <= 0)
		return 0;
	count = this_cpu_counts();
	if (count)
		count_accesses(count, &count->accesses_read, FIELD(void *, iocb, kiocb, ki_filp),
			       FIELD(s64, iocb, kiocb, ki_pos), bytes);
	return 0;
}
#endif

#ifdef HAVE_filemap_splice_read
/* sendfile(2), splice(2), nfsd. Before 6.5 these went through filemap_read (generic_file_splice_read). */
KRETFUNC_PROBE(filemap_splice_read, void *in, void *ppos, void *pipe, u64 len, u32 flags, s64 ret)
{
	struct counts *count;
	s64 end = 0;

	if (ret <= 0)
		return 0;
	bpf_probe_read_kernel(&end, sizeof(end), ppos);
	count = this_cpu_counts();
	if (count)
		count_accesses(count, &count->accesses_splice, in, end, ret);
	return 0;
}
#endif

/* ---------------------------------------------------------------------------------- what a task is bringing in */

/*
 * For which mapping (file) a task is inside which function, 0 for none. An inserted page has a cause only if it
 * belongs to that very mapping: the metadata block read on the way to a data block belongs to the block device's.
 */
struct scope {
	u64 fault;
	u64 read;
	u64 write;
	/* The page that page_cache_sync_ra() was last asked for, and of which file. */
	u64 wanted;
	u64 wanted_index;
};
/* Entries are written in place and never deleted: a dead task's is reused, or dropped as the least recently used. */
BPF_TABLE("lru_hash", u32, struct scope, scopes, 4096);

static __always_inline struct scope *scope_of_task(void)
{
	u32 tid = bpf_get_current_pid_tgid();

	return scopes.lookup(&tid);
}

static __always_inline struct scope *new_scope(void)
{
	struct scope none = {};
	u32 tid = bpf_get_current_pid_tgid();
	struct scope *scope = scopes.lookup(&tid);

	if (scope)
		return scope;
	scopes.update(&tid, &none);
	return scopes.lookup(&tid);
}

/* What ENTER finds from a scope that was never left it overwrites. */
#define ENTER(cause, mapping)                                                                                          \
	do {                                                                                                           \
		struct scope *scope = new_scope();                                                                     \
		if (scope) {                                                                                           \
			scope->cause = (u64)(mapping);                                                                 \
		} else {                                                                                               \
			struct counts *count = this_cpu_counts();                                                      \
			if (count)                                                                                     \
				__sync_fetch_and_add(&count->scopes_lost, 1);                                  \
		}                                                                                                      \
	} while (0)

#define LEAVE(cause)                                                                                                   \
	do {                                                                                                           \
		struct scope *scope = scope_of_task();                                                                 \
		if (scope)                                                                                             \
			scope->cause = 0;                                                                              \
	} while (0)

/*
 * Read-ahead brings in what a read misses, the page asked for included (filemap_get_pages). These functions also
 * serve page faults, which have their own scope and go first when a page is inserted, and ext4's directory blocks, whose mapping
 * is not that of the file passed along.
 */
#define MAPPING(ractl) FIELD(void *, ractl, readahead_control, mapping)

static __always_inline bool reads_own_file(void *ractl)
{
	void *file = FIELD(void *, ractl, readahead_control, file);

	return file && FIELD(void *, file, file, f_mapping) == MAPPING(ractl);
}

#ifdef HAVE_page_cache_sync_ra
KFUNC_PROBE(page_cache_sync_ra, void *ractl, u64 req_count)
{
	struct scope *scope;

	if (!reads_own_file(ractl))
		return 0;
	ENTER(read, MAPPING(ractl));
	scope = scope_of_task();
	if (scope) {
		scope->wanted = (u64)MAPPING(ractl);
		scope->wanted_index = FIELD(u64, ractl, readahead_control, _index);
	}
	return 0;
}

KRETFUNC_PROBE(page_cache_sync_ra, void *ractl, u64 req_count)
{
	LEAVE(read);
	return 0;
}
#endif

#ifdef HAVE_page_cache_async_ra
KFUNC_PROBE(page_cache_async_ra, void *ractl, void *folio, u64 req_count)
{
	if (reads_own_file(ractl))
		ENTER(read, MAPPING(ractl));
	return 0;
}

KRETFUNC_PROBE(page_cache_async_ra, void *ractl, void *folio, u64 req_count)
{
	LEAVE(read);
	return 0;
}
#endif

#ifdef HAVE_force_page_cache_ra
/* readahead(2), posix_fadvise(WILLNEED), madvise(WILLNEED): early reads. page_cache_sync_ra ends with it too. */
KFUNC_PROBE(force_page_cache_ra, void *ractl, u64 nr_to_read)
{
	if (reads_own_file(ractl))
		ENTER(read, MAPPING(ractl));
	return 0;
}

KRETFUNC_PROBE(force_page_cache_ra, void *ractl, u64 nr_to_read)
{
	LEAVE(read);
	return 0;
}
#endif

#ifdef HAVE_filemap_fault
KFUNC_PROBE(filemap_fault, void *vmf)
{
	void *vma = FIELD(void *, vmf, vm_fault, vma);
	void *file = FIELD(void *, vma, vm_area_struct, vm_file);

	ENTER(fault, FIELD(void *, file, file, f_mapping));
	return 0;
}

KRETFUNC_PROBE(filemap_fault, void *vmf, u32 ret)
{
#ifdef SAMPLES_GHOSTS
	struct scope *faulting = scope_of_task();
	u64 mapping = faulting ? faulting->fault : 0; /* the area itself may be gone: it is not locked after a retry */
#endif

	LEAVE(fault);
#ifdef VALUE_VM_FAULT_MAJOR
	/* Its page was not there. A fault that comes again (VM_FAULT_RETRY) finds it, so that each counts once. */
	if (ret & VALUE_VM_FAULT_MAJOR) {
		struct counts *count = this_cpu_counts();

		if (count)
			count->faults_major += 1;
#ifdef SAMPLES_GHOSTS
		if (mapping)
			watch_ghosts(mapping, FIELD(u64, vmf, vm_fault, pgoff), 1, GHOST_RETURNS_BY_FAULT);
#endif
	}
#endif
#ifdef SAMPLES_FAULTS
	/* Not VM_FAULT_RETRY: that one comes again. */
	if (ret & VALUE_VM_FAULT_LOCKED) {
		void *vma = FIELD(void *, vmf, vm_fault, vma);
		u64 page = FIELD(u64, vmf, vm_fault, pgoff);
		struct counts *count = this_cpu_counts();

		if (count) {
			count->faults += 1;
			sample(count, FIELD(void *, vma, vm_area_struct, vm_file), page, page, SAMPLE_FAULT);
		}
	}
#endif
	return 0;
}
#endif

#ifdef HAVE_generic_perform_write
/* ext4, f2fs, NFS, block devices and most others. */
KFUNC_PROBE(generic_perform_write, void *iocb, void *iter)
{
	void *file = FIELD(void *, iocb, kiocb, ki_filp);

	ENTER(write, FIELD(void *, file, file, f_mapping));
	return 0;
}

KRETFUNC_PROBE(generic_perform_write, void *iocb, void *iter)
{
	LEAVE(write);
	return 0;
}
#endif

#ifdef HAVE_iomap_file_buffered_write
/* XFS, GFS2, and block devices since 6.6. */
KFUNC_PROBE(iomap_file_buffered_write, void *iocb)
{
	void *file = FIELD(void *, iocb, kiocb, ki_filp);

	ENTER(write, FIELD(void *, file, file, f_mapping));
	return 0;
}

KRETFUNC_PROBE(iomap_file_buffered_write, void *iocb)
{
	LEAVE(write);
	return 0;
}
#endif

/* ---------------------------------------------------------------------------------- insertions and removals */

#ifdef OFFSET_folio_pages
static __always_inline u64 pages_of_folio(void *folio, u64 flags)
{
	u32 pages = 1;

	if (flags & (1ULL << VALUE_PG_head))
		READ_FIELD(pages, folio, folio, pages);
	return pages;
}

static __always_inline bool is_wanted(struct scope *scope, void *folio, u64 mapping, u64 pages)
{
	u64 index = 0;

	if (scope->wanted != mapping)
		return false;
	READ_FIELD(index, folio, folio, index);
	return scope->wanted_index - index < pages;
}
#endif

#ifdef HAVE_mm_filemap_add_to_page_cache
/*
 * Raised by __filemap_add_folio() once the folio is in the mapping. tmpfs (shmem_add_to_page_cache) and the swap
 * cache (add_to_swap_cache) do not raise it.
 */
RAW_TRACEPOINT_PROBE(mm_filemap_add_to_page_cache)
{
	void *folio = (void *)ctx->args[0];
	struct counts *count = this_cpu_counts();
	struct scope *scope = scope_of_task();
	u64 flags = 0, mapping = 0, index = 0, pages;

	if (!count)
		return 0;
	READ_FIELD(flags, folio, folio, flags);
	pages = pages_of_folio(folio, flags);
	READ_FIELD(mapping, folio, folio, mapping);
	if (!scope || !mapping) {
		count->inserts_other += pages;
		return 0;
	}
#ifdef SAMPLES_GHOSTS
	if (scope->read == mapping && scope->fault != mapping) {
		READ_FIELD(index, folio, folio, index);
		watch_ghosts(mapping, index, pages, GHOST_RETURNS_BY_READ);
	}
#endif
	if (scope->fault == mapping)
		count->inserts_fault += pages;
	else if (scope->read == mapping)
		count->inserts_read += pages;
	else if (scope->write == mapping)
		count->inserts_write += pages;
	/*
	 * Short of memory, read-ahead gives up, and filemap_create_folio() allocates the one page that the read cannot
	 * do without. It is inlined, so there is nothing to hook; but it is the page read-ahead was asked for last.
	 */
	else if (is_wanted(scope, folio, mapping, pages))
		count->inserts_read += pages;
	else
		count->inserts_other += pages;
	return 0;
}

#endif

#ifdef HAVE_mm_filemap_delete_from_page_cache
/*
 * Reclaim, truncation, dropped caches. Unlike its counterpart it is raised for tmpfs as well, when a file of it is
 * truncated: those pages are swap-backed, and no page of any other file is.
 */
RAW_TRACEPOINT_PROBE(mm_filemap_delete_from_page_cache)
{
	void *folio = (void *)ctx->args[0];
	struct counts *count = this_cpu_counts();
	u64 flags = 0, mapping = 0, index = 0;

	READ_FIELD(flags, folio, folio, flags);
	if (!count || flags & (1ULL << VALUE_PG_swapbacked))
		return 0;
	count->evictions += pages_of_folio(folio, flags);
#ifdef SAMPLES_GHOSTS
	READ_FIELD(mapping, folio, folio, mapping);
	READ_FIELD(index, folio, folio, index);
	if (mapping)
		watch_ghosts(mapping, index, pages_of_folio(folio, flags), GHOST_LEAVES);
#endif
	return 0;
}
#endif

/* ------------------------------------------------------------------------------------------- ages of memory */

/*
 * DAMON watches page frames, one of every 2 ** AGES_SHIFT, and tells of each at every step whether it was accessed:
 * see ages.py. Here it is kept since which step each was not, what it is used for, and how many there are of each age.
 */
#ifdef AGES
#define AGE_BINS 10
#define AGE_KINDS 4
#define AGE_NUMBERS (AGE_KINDS * AGE_BINS)

/* Known to ages.py. */
struct ages {
	u64 steps;
	u64 began_ns;
	/* Frames by age: of the present step, and of the one before, which is complete. */
	u32 idle[2 * AGE_NUMBERS];
	/* Touches by the age that they ended, since the start. */
	u64 touched[AGE_NUMBERS];
};
BPF_ARRAY(ages, struct ages, 1);

struct watched_frame {
	/* Whose page is in it: another owner begins anew. 0: nobody's that is reclaimed. */
	u64 owner;
	u64 touched_at;
};
BPF_ARRAY(watched_frames, struct watched_frame, AGES_FRAMES);

static __always_inline u32 age_bin(u64 steps)
{
	u32 bin = 0, at;

#pragma unroll
	for (at = 0; at < AGE_BINS - 1; at++)
		bin += steps >> at != 0;
	return bin;
}

RAW_TRACEPOINT_PROBE(damon_aggregated)
{
	char *region = (char *)ctx->args[1];
	char *page, *head;
	u64 start = 0, base = 0, compound = 0, flags = 0, mapping = 0, index = 0, owner, now = bpf_ktime_get_ns();
	u32 accessed = 0, at, kind;
	s32 mapcount = -1;
	int zero = 0, slot;
	struct ages *all = ages.lookup(&zero);
	struct watched_frame *frame;

	READ_FIELD(start, region, damon_region, ar);
	READ_FIELD(accessed, region, damon_region, nr_accesses);
	slot = start >> (PAGE_SHIFT + AGES_SHIFT);
	frame = watched_frames.lookup(&slot);
	if (!all || !frame)
		return 0;
	/* All regions of a step are told of at once, the next ones a step later. */
	if (now - all->began_ns > AGES_STEP_NS / 2) {
		all->began_ns = now;
		all->steps++;
		if (all->steps & 1)
			__builtin_memset(&all->idle[AGE_NUMBERS], 0, AGE_NUMBERS * sizeof(u32));
		else
			__builtin_memset(&all->idle[0], 0, AGE_NUMBERS * sizeof(u32));
	}
	bpf_probe_read_kernel(&base, sizeof(base), (void *)AGES_VMEMMAP);
	page = head = (char *)base + (start >> PAGE_SHIFT) * SIZE_page;
	READ_FIELD(compound, page, page, compound_head);
	if (compound & 1)
		head = (char *)(compound - 1);
	READ_FIELD(flags, head, folio, flags);
	/* Only what is on the lists of reclaim, and not locked into memory. */
	if (!(flags & (1ULL << VALUE_PG_lru)) || flags & (1ULL << VALUE_PG_unevictable)) {
		frame->owner = 0;
		return 0;
	}
	READ_FIELD(mapping, head, folio, mapping);
	READ_FIELD(index, head, folio, index);
	READ_FIELD(mapcount, page, page, _mapcount);
	/* 1. Of a file, read only. 2. Of a file, mapped. 3. Anonymous: bit 0 of the mapping. 4. Shared memory, tmpfs. */
	if (!(flags & (1ULL << VALUE_PG_swapbacked)))
		kind = mapcount >= 0;
	else
		kind = mapping & 1 ? 2 : 3;
	owner = mapping + index + 1;
	if (frame->owner != owner) {
		frame->owner = owner;
		frame->touched_at = all->steps;
	} else if (accessed) {
		at = kind * AGE_BINS + age_bin(all->steps - frame->touched_at);
		if (at < AGE_NUMBERS)
			all->touched[at]++;
		frame->touched_at = all->steps;
	}
	at = (all->steps & 1) * AGE_NUMBERS + kind * AGE_BINS + age_bin(all->steps - frame->touched_at);
	if (at < 2 * AGE_NUMBERS)
		all->idle[at]++;
	return 0;
}
#endif
