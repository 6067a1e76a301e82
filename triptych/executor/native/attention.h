/* Attention over paged memory: rows meet the keys of their sequence span by span.
 *
 * Part of steps.c. A row's spans begin at the same tokens whatever its neighbours are.
 */

#define MOST_ROWS 4 /* of a sequence that are computed together with the same keys */
#define SPAN 128    /* keys that a row meets at once; spans begin at its multiples */
#define LINE (SPAN + LANES)
#define ROWS_EACH 16 /* rows that one thread computes, where several do */

/* One head of one row while it attends: what it has met so far. */
typedef struct {
    const float *query;
    float *out;
    int64_t sees; /* tokens */
    float most, total;
} Row;

/* LANES vectors to their LANES sums, each added up in the order of `sum`. */
INLINE Vec sums_of(Vec v[LANES]) {
#if LANES == 16
    ALL(i, 8)
    v[i] = MERGED(v[2 * i], v[2 * i + 1], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
           MERGED(v[2 * i], v[2 * i + 1], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    ALL(i, 4)
    v[i] = MERGED(v[2 * i], v[2 * i + 1], 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
           MERGED(v[2 * i], v[2 * i + 1], 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    ALL(i, 2)
    v[i] = MERGED(v[2 * i], v[2 * i + 1], 0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29) +
           MERGED(v[2 * i], v[2 * i + 1], 2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31);
    return MERGED(v[0], v[1], 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +
           MERGED(v[0], v[1], 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
#else
    ALL(i, 4)
    v[i] = MERGED(v[2 * i], v[2 * i + 1], 0, 1, 2, 3, 8, 9, 10, 11) +
           MERGED(v[2 * i], v[2 * i + 1], 4, 5, 6, 7, 12, 13, 14, 15);
    ALL(i, 2)
    v[i] = MERGED(v[2 * i], v[2 * i + 1], 0, 1, 4, 5, 8, 9, 12, 13) +
           MERGED(v[2 * i], v[2 * i + 1], 2, 3, 6, 7, 10, 11, 14, 15);
    return MERGED(v[0], v[1], 0, 2, 4, 6, 8, 10, 12, 14) +
           MERGED(v[0], v[1], 1, 3, 5, 7, 9, 11, 13, 15);
#endif
}

/* Scores of ROWS rows for `count` keys, `run` numbers apart: LANES at a time, KEYS of them side by
 * side; each in one order whatever these are. Rows' lines are LINE numbers apart. */
#define SCORE(ROWS, KEYS)                                                                          \
    static void score_##ROWS(const Row *rows, const float *keys, int64_t run, int count, int size, \
                             float scale, float *scores) {                                         \
        for (int t = 0; t < count; t += LANES / ROWS) {                                            \
            int some = count - t < LANES / ROWS ? count - t : LANES / ROWS;                        \
            Vec dots[LANES] = {{0}};                                                               \
            ALL(part, LANES / ROWS / KEYS) {                                                       \
                const float *key[KEYS];                                                            \
                if (part * KEYS >= some) break;                                                    \
                ALL(k, KEYS) key[k] = keys + (t + (part * KEYS + k < some ? part * KEYS + k : 0)) * run; \
                for (int i = 0; i < size; i += LANES) {                                            \
                    Vec q[ROWS];                                                                   \
                    ALL(r, ROWS) q[r] = load(rows[r].query + i);                                   \
                    ALL(k, KEYS) {                                                                 \
                        Vec one = load(key[k] + i);                                                \
                        ALL(r, ROWS) dots[r * (LANES / ROWS) + part * KEYS + k] += q[r] * one;     \
                    }                                                                              \
                }                                                                                  \
            }                                                                                      \
            Vec sums = sums_of(dots) * scale;                                                      \
            if (some == LANES / ROWS) {                                                            \
                ALL(r, ROWS)                                                                       \
                memcpy(scores + r * LINE + t, (float *)&sums + r * (LANES / ROWS),                 \
                       sizeof(float) * (LANES / ROWS));                                            \
            } else                                                                                 \
                for (int r = 0; r < ROWS; r++)                                                     \
                    for (int k = 0; k < some; k++)                                                 \
                        scores[r * LINE + t + k] = sums[r * (LANES / ROWS) + k];                   \
        }                                                                                          \
    }

/* What `count` values, weighed, add to the outputs of ROWS rows; VECTORS of an output at a time. */
#define WEIGH(ROWS, VECTORS)                                                                       \
    INLINE void weigh_##ROWS##_##VECTORS(const Row *rows, const float *values, int64_t run,        \
                                         int count, int at, const float *weights) {                \
        Vec sums[ROWS][VECTORS];                                                                   \
        ALL(r, ROWS) ALL(v, VECTORS) sums[r][v] = load(rows[r].out + at + v * LANES);              \
        for (int t = 0; t < count; t++) {                                                          \
            Vec value[VECTORS];                                                                    \
            ALL(v, VECTORS) value[v] = load(values + t * run + at + v * LANES);                    \
            ALL(r, ROWS) ALL(v, VECTORS) sums[r][v] += weights[r * LINE + t] * value[v];           \
        }                                                                                          \
        ALL(r, ROWS) ALL(v, VECTORS) store(rows[r].out + at + v * LANES, sums[r][v]);              \
    }
#define WEIGH_ALL(ROWS, MOST, LESS)                                                                \
    static void weigh_##ROWS(const Row *rows, const float *values, int64_t run, int count,         \
                             int size, const float *weights) {                                     \
        int at = 0;                                                                                \
        for (; size - at >= MOST * LANES; at += MOST * LANES)                                      \
            weigh_##ROWS##_##MOST(rows, values, run, count, at, weights);                          \
        for (; size - at >= LESS * LANES; at += LESS * LANES)                                      \
            weigh_##ROWS##_##LESS(rows, values, run, count, at, weights);                          \
        for (; at < size; at += LANES) weigh_##ROWS##_1(rows, values, run, count, at, weights);    \
    }

SCORE(1, 4)
SCORE(2, 4)
WEIGH(1, 8)
WEIGH(1, 4)
WEIGH(1, 1)
WEIGH(2, 4)
WEIGH(2, 2)
WEIGH(2, 1)
WEIGH(4, 2)
WEIGH(4, 1)
WEIGH_ALL(1, 8, 4)
WEIGH_ALL(2, 4, 2)
#if LANES == 16
SCORE(4, 4)
WEIGH(4, 4)
WEIGH_ALL(4, 4, 2)
#else
SCORE(4, 2)
WEIGH_ALL(4, 2, 1)
#endif

/* The greatest of `most` and `count` numbers; LANES are read at a time. */
INLINE float greatest(const float *numbers, int count, float most) {
    Vec found = fill(most);
    for (int i = 0; i < count; i += LANES) {
        Vec v = load(numbers + i);
        found = choose(v > found, v, found);
    }
    for (int i = 0; i < LANES; i++) most = found[i] > most ? found[i] : most;
    return most;
}

/* `count` scores become weights, e^(score - best), LANES at a time; their sum. */
INLINE float weights_of(float *scores, int count, float best) {
    Vec total = {0};
    for (int i = 0; i < count; i += LANES) {
        Vec v = exponential(load(scores + i) - best);
        store(scores + i, v);
        total += v;
    }
    return sum(total);
}

/* Softmax goes on (FlashAttention, arXiv 2205.14135, algorithm 1): `count` scores become weights
 * under the greatest score so far, and what the row has is faded to it. LANES numbers behind them
 * are written too. */
INLINE void soften(Row *row, float *scores, int count, int size) {
    store(scores + count, fill(-INFINITY));
    float best = greatest(scores, count, row->most), total = weights_of(scores, count, best);
    float faded = exponential(fill(row->most - best))[0];
    if (faded != 1.0f)
        for (int i = 0; i < size; i += LANES) store(row->out + i, load(row->out + i) * faded);
    row->total = row->total * faded + total;
    row->most = best;
}

/* How many of the tokens from `token` to `end` a row sees. */
INLINE int seen(const Row *row, int64_t token, int64_t end) {
    int64_t count = (row->sees < end ? row->sees : end) - token;
    return count > 0 ? (int)count : 0;
}

/* Up to MOST_ROWS rows meet the keys of tokens [token, end), at most SPAN, of one KV head: where all
 * see a key they are computed together. */
static void meet(const Operation *op, const int32_t *table, int kv_head, Row *rows, int count,
                 int64_t token, int64_t end) {
    float scores[MOST_ROWS * LINE];
    int64_t run = (int64_t)op->kv_heads * op->head_dim, size = op->head_dim, least = end;
    for (int r = 0; r < count; r++) least = rows[r].sees < least ? rows[r].sees : least;
    for (int is_value = 0; is_value < 2; is_value++) {
        for (int64_t at = token, next; at < end; at = next) {
            next = (at / op->block_size + 1) * op->block_size;
            next = next < end ? next : end;
            const float *from = (const float *)op->b + table[at / op->block_size] * op->block_stride +
                                (at % op->block_size + is_value * op->block_size) * run +
                                kv_head * size;
            int64_t all = least > at ? (least < next ? least : next) - at : 0;
            for (int r = 0, together; r < count; r += together) {
                together = count - r >= MOST_ROWS ? MOST_ROWS : count - r >= 2 ? 2 : 1;
                float *line = scores + r * LINE + (at - token);
                if (is_value)
                    (together == 4 ? weigh_4 : together == 2 ? weigh_2 : weigh_1)(
                        rows + r, from, run, (int)all, (int)size, line);
                else
                    (together == 4 ? score_4 : together == 2 ? score_2 : score_1)(
                        rows + r, from, run, (int)all, (int)size, op->number, line);
            }
            for (int r = 0; r < count; r++) {
                int more = seen(rows + r, at + all, next);
                float *line = scores + r * LINE + (at + all - token);
                if (more && is_value) weigh_1(rows + r, from + all * run, run, more, size, line);
                else if (more) score_1(rows + r, from + all * run, run, more, size, op->number, line);
            }
        }
        for (int r = 0; r < count && !is_value; r++)
            if (seen(rows + r, token, end))
                soften(rows + r, scores + r * LINE, seen(rows + r, token, end), size);
    }
}

/* Rows of some tokens of a sequence meet [token, end), span by span: `count` of each of `kv_heads` KV
 * heads from `kv_head` on, one behind the other, so that a span's memory is fetched for all heads. */
static void meet_all(const Operation *op, const int32_t *table, int kv_head, int kv_heads, Row *rows,
                     int count, int64_t token, int64_t end) {
    for (int64_t next; token < end; token = next) {
        next = (token / SPAN + 1) * SPAN;
        next = next < end ? next : end;
        for (int head = 0; head < kv_heads; head++)
            for (int r = 0; r < count; r += MOST_ROWS) {
                int some = count - r < MOST_ROWS ? count - r : MOST_ROWS;
                Row *first = rows + head * count + r;
                if (first[some - 1].sees > token)
                    meet(op, table, kv_head + head, first, some, token, next);
            }
    }
}

/* Rows that have met nothing yet, ascending by what they see: of tokens `first` to `last`, the heads
 * [head, head + heads). `ends` says what each token sees, or the last of all sees `inner` tokens. */
static int begin(const Operation *op, Row *rows, int64_t first, int64_t last, int head, int heads,
                 const int64_t *ends) {
    int64_t wide = (int64_t)(op->heads + 2 * op->kv_heads) * op->head_dim;
    int count = 0;
    for (int64_t token = first; token < last; token++)
        for (int h = head; h < head + heads; h++)
            rows[count++] = (Row){(const float *)op->a + token * wide + h * op->head_dim,
                                  (float *)op->out + (token * op->heads + h) * op->head_dim,
                                  ends ? ends[token] : op->inner - op->rows + token + 1,
                                  -INFINITY, 0.0f};
    return count;
}

static void finish(Row *rows, int count, int size) {
    for (int r = 0; r < count; r++)
        for (int i = 0; i < size && rows[r].total > 0.0f; i += LANES)
            store(rows[r].out + i, load(rows[r].out + i) / rows[r].total);
}

/* out (rows, heads, head_dim): the turned queries of a attend to a layer's memory b, whose blocks lie
 * `block_stride` numbers apart. c holds the address of each row's block table (int32), d (int64) how
 * many tokens it sees; rows of a sequence are taken together while they see more and more. `number`
 * scales scores. Fails if there is no memory for these. */
static int attend(const Operation *op) {
    const int64_t *ends = op->d, *tables = op->c;
    int shared = op->heads / op->kv_heads;
    Row *rows = malloc(sizeof(Row) * op->rows * op->heads);
    if (!rows) return -1;
    memset(op->out, 0, sizeof(float) * op->rows * op->heads * op->head_dim);
    for (int64_t row = 0, next; row < op->rows; row = next) {
        next = row + 1;
        while (next < op->rows && tables[next] == tables[row] && ends[next] > ends[next - 1]) next++;
        int count = 0, each = (int)(next - row) * shared;
        for (int head = 0; head < op->heads; head += shared)
            count += begin(op, rows + count, row, next, head, shared, ends);
        meet_all(op, (const int32_t *)tables[row], 0, op->kv_heads, rows, each, 0, ends[next - 1]);
        finish(rows, count, op->head_dim);
    }
    free(rows);
    return 0;
}

/* Part `part` of attend: its rows. */
static int attend_part(const void *work, int part) {
    Operation op = *(const Operation *)work;
    int64_t first = (int64_t)part * ROWS_EACH, left = op.rows - first;
    op.rows = left < ROWS_EACH ? left : ROWS_EACH;
    op.a = (const float *)op.a + first * (op.heads + 2 * op.kv_heads) * op.head_dim;
    op.out = (float *)op.out + first * op.heads * op.head_dim;
    op.c = (const int64_t *)op.c + first;
    op.d = (const int64_t *)op.d + first;
    return attend(&op);
}

/* Neighbouring heads that attend_tiles takes together: those of one list and one KV head. */
INLINE int together(const Operation *op) {
    int shared = op->heads / op->kv_heads, sharers = op->heads / ((const int32_t *)op->d)[2];
    return sharers < shared ? sharers : shared;
}

/* out (rows, heads, head_dim): the turned queries of a, the last rows of one sequence's `inner` tokens,
 * attend to listed tiles of keys in a layer's memory b, whose blocks lie `block_stride` numbers apart;
 * c is the block table (int32). d holds the lists (int32): rows of a tile, keys of a tile, how many
 * lists a tile of rows has, for as many neighbouring heads each, and the length of an entry; then, by
 * list and tile of rows, entries: how many tiles of keys, and which, ascending. `number` scales
 * scores. Who reads all tiles computes what `attend` does. Fails if there is no memory for rows.
 * Part `part` of it: as many heads as go together. */
static int attend_tiles(const void *work, int part) {
    const Operation *op = work;
    const int32_t *lists = op->d;
    int64_t tile_q = lists[0], tile_k = lists[1], tiles = (op->rows + tile_q - 1) / tile_q;
    int shared = op->heads / op->kv_heads, sharers = op->heads / lists[2];
    int heads = together(op), head = part * heads;
    Row *rows = malloc(sizeof(Row) * tile_q * heads);
    if (!rows) return -1;
    for (int64_t row = 0; row < op->rows; row++)
        memset((float *)op->out + (row * op->heads + head) * op->head_dim, 0,
               sizeof(float) * heads * op->head_dim);
    for (int64_t tile = 0; tile < tiles; tile++) {
        const int32_t *entry = lists + 4 + (head / sharers * tiles + tile) * lists[3];
        int64_t last = (tile + 1) * tile_q < op->rows ? (tile + 1) * tile_q : op->rows;
        int count = begin(op, rows, tile * tile_q, last, head, heads, 0);
        int64_t sees = rows[count - 1].sees;
        for (int at = 1; at <= entry[0]; at++) {
            int is_all = entry[0] == (sees + tile_k - 1) / tile_k;
            int64_t token = is_all ? 0 : entry[at] * tile_k, end = token + tile_k;
            meet_all(op, op->c, head / shared, 1, rows, count, token, is_all || end > sees ? sees : end);
            if (is_all) break;
        }
        finish(rows, count, op->head_dim);
    }
    free(rows);
    return 0;
}
