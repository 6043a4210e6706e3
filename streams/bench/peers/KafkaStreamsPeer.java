import java.nio.ByteBuffer;
import java.time.Duration;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.Arrays;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.concurrent.atomic.AtomicLong;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.OffsetSpec;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.utils.Bytes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.errors.StreamsUncaughtExceptionHandler.StreamThreadExceptionResponse;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.Grouped;
import org.apache.kafka.streams.kstream.Materialized;
import org.apache.kafka.streams.kstream.TimeWindows;
import org.apache.kafka.streams.processor.api.FixedKeyProcessor;
import org.apache.kafka.streams.processor.api.FixedKeyProcessorContext;
import org.apache.kafka.streams.processor.api.FixedKeyRecord;
import org.apache.kafka.streams.processor.api.RecordMetadata;
import org.apache.kafka.streams.state.WindowStore;

/**
 * A bench on Kafka Streams, by the last argument.
 *
 * <p>`counters`: topic of (String, Long) → groupByKey → reduce(sum) → RocksDB store with changelog. `windows`: topic of
 * (String, Double) → groupByKey → tumbling windows of 10 s by the records' timestamps, 24 h of grace → count, sum, min and
 * max as four doubles → RocksDB window store with changelog.
 *
 * <p>Arguments: bootstrap topic applicationId stateDir guarantee threads warmupEvents deadlineSeconds counters|windows
 * [totalEvents devices baseMs perEventSecond]. Prints one line of JSON: events timed and the seconds from the last warm-up
 * event handed to the topology until the group's committed offsets equal the topic's end. With the last four arguments the
 * topic is empty, and this process produces the readings while they are processed, first those of the warm-up, to
 * their commit: then the clock begins. Everything not set here is Kafka Streams' default.
 */
public final class KafkaStreamsPeer {
    private static final int PROGRESS_EVERY = 1024;

    /** Events seen by all tasks, and when the warm-up was over. */
    private static final class Progress {
        final AtomicLong seen = new AtomicLong();
        final long warmupEvents;
        final Map<Integer, Long> endOffsets;
        volatile long startNanos;
        volatile long startSeen;

        Progress(long warmupEvents, Map<Integer, Long> endOffsets) {
            this.warmupEvents = warmupEvents;
            this.endOffsets = endOffsets;
        }

        synchronized void add(long events) {
            long total = seen.addAndGet(events);
            if (startNanos == 0 && total >= warmupEvents && !endOffsets.isEmpty()) {
                startSeen = total;
                startNanos = System.nanoTime();
            }
        }
    }

    /** Passes every record on; counts, and asks for a commit at the partition's last record, so no interval is waited out. */
    private static final class Observe<V> implements FixedKeyProcessor<String, V, V> {
        private final Progress progress;
        private FixedKeyProcessorContext<String, V> context;
        private long pending;

        Observe(Progress progress) {
            this.progress = progress;
        }

        @Override
        public void init(FixedKeyProcessorContext<String, V> context) {
            this.context = context;
        }

        @Override
        public void process(FixedKeyRecord<String, V> record) {
            context.forward(record);
            pending++;
            RecordMetadata at = context.recordMetadata().get();
            boolean last = at.offset() + 1 == progress.endOffsets.getOrDefault(at.partition(), -1L);
            if (last || pending == PROGRESS_EVERY) {
                progress.add(pending);
                pending = 0;
            }
            if (last) {
                context.commit();
            }
        }
    }

    private static Properties config(String[] args) {
        Properties config = new Properties();
        config.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, args[0]);
        config.put(StreamsConfig.APPLICATION_ID_CONFIG, args[2]);
        config.put(StreamsConfig.STATE_DIR_CONFIG, args[3]);
        config.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, args[4]);
        config.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, args[5]);
        config.put(StreamsConfig.consumerPrefix("auto.offset.reset"), "earliest");
        return config;
    }

    private static Map<TopicPartition, Long> ends(Admin admin, String topic) throws Exception {
        int partitions = admin.describeTopics(List.of(topic)).allTopicNames().get().get(topic).partitions().size();
        Map<TopicPartition, OffsetSpec> specs = new HashMap<>();
        for (int p = 0; p < partitions; p++) {
            specs.put(new TopicPartition(topic, p), OffsetSpec.latest());
        }
        Map<TopicPartition, Long> ends = new HashMap<>();
        for (var e : admin.listOffsets(specs).all().get().entrySet()) {
            ends.put(e.getKey(), e.getValue().offset());
        }
        return ends;
    }

    private static boolean committed(Admin admin, String group, Map<TopicPartition, Long> ends) throws Exception {
        Map<TopicPartition, OffsetAndMetadata> offsets =
            admin.listConsumerGroupOffsets(group).partitionsToOffsetAndMetadata().get();
        return ends.entrySet().stream().allMatch(e -> {
            OffsetAndMetadata at = offsets.get(e.getKey());
            return e.getValue() == 0 || at != null && at.offset() == e.getValue();
        });
    }

    private static void counters(StreamsBuilder builder, String topic, Progress progress) {
        builder.stream(topic, Consumed.with(Serdes.String(), Serdes.Long()))
            .processValues(() -> new Observe<Long>(progress))
            .groupByKey(Grouped.with(Serdes.String(), Serdes.Long()))
            .reduce(Long::sum, Materialized.as("counts"));
    }

    private static void windows(StreamsBuilder builder, String topic, Progress progress) {
        Serde<double[]> four = Serdes.serdeFrom(
            (name, v) -> v == null ? null : ByteBuffer.allocate(32).putDouble(v[0]).putDouble(v[1]).putDouble(v[2]).putDouble(v[3]).array(),
            (name, b) -> {
                if (b == null) {
                    return null;
                }
                ByteBuffer in = ByteBuffer.wrap(b);
                return new double[] {in.getDouble(), in.getDouble(), in.getDouble(), in.getDouble()};
            });
        builder.stream(topic, Consumed.with(Serdes.String(), Serdes.Double()))
            .processValues(() -> new Observe<Double>(progress))
            .groupByKey(Grouped.with(Serdes.String(), Serdes.Double()))
            .windowedBy(TimeWindows.ofSizeAndGrace(Duration.ofSeconds(10), Duration.ofHours(24)))
            .aggregate(
                () -> new double[] {0, 0, Double.POSITIVE_INFINITY, Double.NEGATIVE_INFINITY},
                (key, v, to) -> new double[] {to[0] + 1, to[1] + v, Math.min(to[2], v), Math.max(to[3], v)},
                Materialized.<String, double[], WindowStore<Bytes, byte[]>>as("windows").withKeySerde(Serdes.String()).withValueSerde(four));
    }

    public static void main(String[] args) throws Exception {
        String topic = args[1];
        long deadlineNanos = System.nanoTime() + Long.parseLong(args[7]) * 1_000_000_000L;
        AtomicBoolean failed = new AtomicBoolean();
        try (Admin admin = Admin.create(Map.<String, Object>of("bootstrap.servers", args[0]))) {
            Map<TopicPartition, Long> ends = ends(admin, topic);
            Map<Integer, Long> endOffsets = new HashMap<>();
            if (args.length < 10) {
                ends.forEach((tp, end) -> endOffsets.put(tp.partition(), end));
            }
            long total = ends.values().stream().mapToLong(Long::longValue).sum();
            Progress progress = new Progress(Long.parseLong(args[6]), endOffsets);
            StreamsBuilder builder = new StreamsBuilder();
            if (args[8].equals("windows")) {
                windows(builder, topic, progress);
            } else {
                counters(builder, topic, progress);
            }
            String[] produced = args.length > 9 ? Arrays.copyOfRange(args, 10, 13) : null;
            try (KafkaStreams streams = new KafkaStreams(builder.build(), config(args))) {
                streams.setUncaughtExceptionHandler(error -> {
                    error.printStackTrace();
                    failed.set(true);
                    return StreamThreadExceptionResponse.SHUTDOWN_CLIENT;
                });
                streams.start();
                if (produced != null) {
                    long last = Long.parseLong(args[9]);
                    BenchTool.readings(args[0], topic, 0, progress.warmupEvents, produced);
                    ends = ends(admin, topic);
                    while (!committed(admin, args[2], ends) && !failed.get() && System.nanoTime() < deadlineNanos) {
                        Thread.sleep(10);
                    }
                    progress.startSeen = progress.warmupEvents;
                    progress.startNanos = System.nanoTime();
                    BenchTool.readings(args[0], topic, progress.warmupEvents, last, produced);
                    ends = ends(admin, topic);
                    total = last;
                }
                while (produced == null && progress.seen.get() < total || !committed(admin, args[2], ends)) {
                    if (failed.get() || System.nanoTime() > deadlineNanos) {
                        System.err.println("only " + progress.seen.get() + " of " + total + " events were processed");
                        streams.close(Duration.ofSeconds(5));
                        System.exit(1);
                    }
                    Thread.sleep(produced == null && progress.seen.get() < total ? 10 : 2);
                }
                double seconds = (System.nanoTime() - progress.startNanos) / 1e9;
                System.out.println("{\"events\": " + (total - progress.startSeen) + ", \"seconds\": " + seconds + "}");
                System.out.flush();
                streams.close(Duration.ofSeconds(10));
            }
        }
    }
}
