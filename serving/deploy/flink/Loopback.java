import static net.bytebuddy.matcher.ElementMatchers.named;
import static net.bytebuddy.matcher.ElementMatchers.takesArguments;

import java.lang.instrument.Instrumentation;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import net.bytebuddy.agent.builder.AgentBuilder;
import net.bytebuddy.asm.Advice;
import net.bytebuddy.implementation.bytecode.assign.Assigner;
import org.apache.beam.vendor.grpc.v1p60p1.io.grpc.netty.NettyServerBuilder;

/** Lets Beam's servers listen on this machine's own address: they take every address, whatever host they are given. */
public final class Loopback {
  public static void premain(String arguments, Instrumentation instrumentation) {
    new AgentBuilder.Default()
        .type(named("org.apache.beam.vendor.grpc.v1p60p1.io.grpc.netty.NettyServerBuilder"))
        .transform((builder, type, loader, module, domain) ->
            builder.visit(Advice.to(ForPort.class).on(named("forPort").and(takesArguments(int.class)))))
        .installOn(instrumentation);
  }

  public static final class ForPort {
    @Advice.OnMethodExit
    public static void exit(
        @Advice.Argument(0) int port,
        @Advice.Return(readOnly = false, typing = Assigner.Typing.DYNAMIC) Object builder) {
      builder = NettyServerBuilder.forAddress(new InetSocketAddress(InetAddress.getLoopbackAddress(), port));
    }
  }
}
